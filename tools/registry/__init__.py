"""The data files of information elements: checks them, and makes those that are taken from Wireshark's tables."""
