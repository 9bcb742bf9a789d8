"""The files on disk, each whole or not there at all."""
