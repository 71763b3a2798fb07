"""A person waits for this code: the commands of the operator, one file each."""
