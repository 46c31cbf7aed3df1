"""CT-CLIP-compatible towers, radiograph simulation, CT-RATE, RAD-ChestCT and MIMIC-CT."""
