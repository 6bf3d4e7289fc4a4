"""Preference data: labelled completions from several sources, in the unpaired form of TRL."""
