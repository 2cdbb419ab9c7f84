"""The commands of ``seedtune``, grouped by what they work on."""
