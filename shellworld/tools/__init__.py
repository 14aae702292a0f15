"""Tools for who works on the shells: speed, recordings of real bash, agreement with it."""
