"""The command and a chain for every test here."""

from tests.support.chain_cli import chain, rexctl

__all__ = ["chain", "rexctl"]
