"""What a run takes on devices that may not be there: memory, time, collectives, cost."""
