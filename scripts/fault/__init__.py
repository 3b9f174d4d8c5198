"""What a campaign of faults is made of."""
