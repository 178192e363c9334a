"""Comparison with conventional video codecs: rate and distortion of the same frames, measured by the same code."""

from hnerv.codec.comparison.bitstreams import compare_files
from hnerv.codec.comparison.codecs import CODECS, VideoCodec, check_codecs, conversion_psnr, measure_codec, parse_codecs
from hnerv.codec.comparison.rates import BdRate, Clip, Quality, RatePoint, bd_rate, quality
from hnerv.codec.comparison.table import Comparison, text_table, to_dict, write_comparison

__all__ = [
    "CODECS",
    "BdRate",
    "Clip",
    "Comparison",
    "Quality",
    "RatePoint",
    "VideoCodec",
    "bd_rate",
    "check_codecs",
    "compare_files",
    "conversion_psnr",
    "measure_codec",
    "parse_codecs",
    "quality",
    "text_table",
    "to_dict",
    "write_comparison",
]
