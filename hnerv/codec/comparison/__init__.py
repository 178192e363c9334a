"""What other codecs make of the same frames: rate and distortion, measured by the same code, and who wins."""

from hnerv.codec.comparison.bdrate import BdRate, bd_rate
from hnerv.codec.comparison.points import Clip, Quality, RatePoint, quality
from hnerv.codec.comparison.rivals import RIVALS, Rival, check_rivals, conversion_psnr, encode_rival, parse_rivals
from hnerv.codec.comparison.table import Comparison, text_table, to_dict, write_comparison

__all__ = [
    "RIVALS",
    "BdRate",
    "Clip",
    "Comparison",
    "Quality",
    "RatePoint",
    "Rival",
    "bd_rate",
    "check_rivals",
    "conversion_psnr",
    "encode_rival",
    "parse_rivals",
    "quality",
    "text_table",
    "to_dict",
    "write_comparison",
]
