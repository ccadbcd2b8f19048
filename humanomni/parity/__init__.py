"""The authors' numbers beside ours: golden folders, what is compared, the table."""
