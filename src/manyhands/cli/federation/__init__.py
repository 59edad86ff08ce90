"""The commands of a federation."""
