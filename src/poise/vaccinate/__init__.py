"""Fine-tune without picking a trait up, and say what training did."""
