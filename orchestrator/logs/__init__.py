"""An attempt's logs for people, wherever they are."""
