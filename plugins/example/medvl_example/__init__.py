"""The smallest useful medvl plugin."""
