"""What the package's pages share: how they are put together, their colours and plain elements."""
