"""nightloom: archives of raw CCD frames into light curves."""
