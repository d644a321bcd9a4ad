"""Jobs: long work in processes of their own. What is ordered, what state it is in, who runs it."""
