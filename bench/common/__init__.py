"""What every benchmark is made of: processes, turns, the machine, results and their page."""
