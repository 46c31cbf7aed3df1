"""Layer over the core: commands for authors of plugins and bundles."""
