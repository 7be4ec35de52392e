"""The tables of docs/layouts.md are those that its script would write."""

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_every_family_is_shown_on_every_layout_as_equal_to_one_device():
    script = runpy.run_path(str(ROOT / "benchmarks" / "layouts.py"), run_name="layouts")
    lines = (ROOT / "docs" / "layouts.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    shown = {(row[0], row[1]): row[2:] for row in rows if len(row) == 5}
    for family in script["FAMILIES"]:
        for layout in script["LAYOUTS"]:
            _, loss, gradients = map(float, shown[family, layout])
            assert loss < 1e-12 and gradients < 1e-8, (family, layout)
