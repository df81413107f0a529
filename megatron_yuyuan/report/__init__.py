"""A run as one page that opens anywhere: read from its directory, drawn, explained."""
