"""Pictures and pages for people: of a profile and of a run."""
