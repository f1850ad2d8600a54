"""The ClientApp process: runs the client side of Flower Apps for a SuperNode."""
