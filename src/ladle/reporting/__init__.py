"""What is written from the records of finished runs: the report page, its plots, and the cards of what is pushed."""
