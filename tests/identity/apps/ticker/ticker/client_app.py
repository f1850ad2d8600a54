"""Does nothing: the run asks no SuperNode."""

from flwr.client import ClientApp

app = ClientApp()
