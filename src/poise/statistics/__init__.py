"""Figures with their n and their interval. Knows numbers only.

estimates   means, rates, AUC, correlations and κ with their intervals
intervals   the intervals that hold at small n
conformal   thresholds that keep a false-alarm rate
row_rates   thresholds of several traits that keep a rate of rows
crossed     means over questions and training runs
cusum       slow drift, with a stated average run length
"""
