"""Fine-tuning: its settings are chosen from the data, the machine and the weights."""
