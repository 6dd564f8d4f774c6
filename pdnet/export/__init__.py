"""The network in other forms, each checked against the network itself."""
