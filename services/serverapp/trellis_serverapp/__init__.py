"""The ServerApp process: runs the server side of Flower Apps for a SuperLink."""
