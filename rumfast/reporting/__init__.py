"""From a summary of one run to one self-contained page: numbers as text, figures as SVG, then HTML."""
