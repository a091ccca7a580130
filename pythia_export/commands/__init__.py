"""What the commands do, one job a module. The command line parses and prints; Python may call these directly."""
