"""What other programs promise and check, restated as cases of what a client sees, and tried on them and on us alike."""
