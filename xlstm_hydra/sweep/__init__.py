"""How the jobs of a sweep went: one record of all of them, kept while they run and told at the end."""

from ._outcome import RECORD_FILE, Outcome, job_recorded, read_record, update_record

__all__ = ["RECORD_FILE", "Outcome", "job_recorded", "read_record", "update_record"]
