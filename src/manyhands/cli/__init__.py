"""The command line: a file a command."""

from manyhands.cli.app import main as main
