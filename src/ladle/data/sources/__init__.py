"""What can be read: files of a split, cut into pieces; rows of a piece; documents made of rows."""
