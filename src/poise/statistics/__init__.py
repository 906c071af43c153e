"""Figures with their n and their interval. Knows numbers only.

estimates   means, correlations, AUC and κ with bootstrap intervals
conformal   thresholds that keep a false-alarm rate
row_rates   thresholds of several traits that keep a rate of rows
cusum       slow drift, with a stated average run length
"""
