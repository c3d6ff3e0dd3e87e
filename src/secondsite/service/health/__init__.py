"""What is wrong now, since when, why, and what to do: the rules, the list that is kept of what they find, the figures."""
