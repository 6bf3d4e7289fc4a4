"""What is written from the records of a finished run: the report page and its plots."""
