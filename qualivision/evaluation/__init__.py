"""How well predictions agree with raters: the numbers, what they are measured against, the report of both."""
