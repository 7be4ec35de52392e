# CPU:   docker build -t xlstm-hydra .
#        docker run --rm -v "$PWD:/workspace" --user "$(id -u):$(id -g)" xlstm-hydra
# CUDA:  docker build --build-arg EXTRAS=cuda13 -t xlstm-hydra:cuda .    (cuda12 for older drivers)
#        docker run --rm --gpus all --shm-size 8g -v "$PWD:/workspace" --user "$(id -u):$(id -g)" xlstm-hydra:cuda
ARG PYTHON=3.13
FROM python:${PYTHON}-slim

# JAX installs the CUDA libraries from PyPI; the host provides only the driver, through the NVIDIA container toolkit.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_NO_CACHE_DIR=1

ARG EXTRAS=""
WORKDIR /opt/xlstm_hydra
COPY pyproject.toml README.md LICENSE ./
COPY conf conf
COPY hydra_plugins hydra_plugins
COPY xlstm_hydra xlstm_hydra
# There is no version to pin: this checkout is installed.
# hadolint ignore=DL3013
RUN pip install ".${EXTRAS:+[$EXTRAS]}"

# Any user of the host may run the image: the home folder holds only caches.
RUN useradd --uid 1000 --create-home trainer && chmod 777 /home/trainer
ENV HOME=/home/trainer USER=trainer
USER 1000
WORKDIR /workspace
ENTRYPOINT ["xlstm-hydra"]
