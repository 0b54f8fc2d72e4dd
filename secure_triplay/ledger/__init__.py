"""What was decided, charged and released: one signed chain a party, and the evidence made of it."""
