"""From verdicts to a model that no longer uses what was judged spurious."""
