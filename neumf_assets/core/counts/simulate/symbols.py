"""Gene symbols for simulated data: real ones where they carry meaning, family patterns for the rest."""

from __future__ import annotations

import numpy as np


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


MITOCHONDRIAL = _words(
    "MT-ND1 MT-ND2 MT-CO1 MT-CO2 MT-ATP8 MT-ATP6 MT-CO3 MT-ND3 MT-ND4L MT-ND4 MT-ND5 MT-ND6 MT-CYB"
)  # the 13 of the human genome
RIBOSOMAL = _words(
    "RPLP0 RPLP1 RPLP2 RPL3 RPL4 RPL5 RPL6 RPL7 RPL7A RPL8 RPL9 RPL10 RPL10A RPL11 RPL12 RPL13 RPL13A "
    "RPL14 RPL15 RPL17 RPL18 RPL18A RPL19 RPL21 RPL22 RPL23 RPL23A RPL24 RPL26 RPL27 RPL27A RPL28 RPL29 "
    "RPL30 RPL31 RPL32 RPL34 RPL35 RPL35A RPL36 RPL37 RPL37A RPL38 RPL39 RPL41 RPSA RPS2 RPS3 RPS3A RPS4X "
    "RPS5 RPS6 RPS7 RPS8 RPS9 RPS10 RPS11 RPS12 RPS13 RPS14 RPS15 RPS15A RPS16 RPS17 RPS18 RPS19 RPS20 "
    "RPS21 RPS23 RPS24 RPS25 RPS26 RPS27 RPS27A RPS28 RPS29"
)
INTERFERON = _words(
    "ISG15 IFI6 IFIT1 IFIT2 IFIT3 MX1 MX2 OAS1 OAS2 OAS3 OASL ISG20 IFITM1 IFITM2 IFITM3 IFI35 IFI44 "
    "IFI44L IFI27 IFI16 IRF7 IRF1 IRF9 STAT1 STAT2 LY6E TNFSF10 RSAD2 HERC5 HERC6 USP18 DDX58 IFIH1 "
    "CXCL10 CXCL11 CXCL9 CCL8 CCL2 CCL7 EIF2AK2 PARP9 PARP14 DTX3L SAMD9 SAMD9L XAF1 BST2 PLSCR1 TRIM22 "
    "TRIM5 SP100 SP110 EPSTI1 CMPK2 LGALS3BP LAP3 PSMB9 TAP1 UBE2L6 GBP1 GBP2 GBP4 GBP5 WARS APOBEC3A "
    "IDO1 CD38 NT5C3A SOCS1 RTP4 PML ADAR NMI TRIM21 TRIM25 SHISA5 MT2A HELZ2 ZBP1 DHX58"
)
MARKERS: dict[str, tuple[str, ...]] = {
    "CD14 Mono": ("CD14", "S100A8", "S100A9", "S100A12", "VCAN", "FCN1", "CCR2", "CD163", "CLEC4E", "MGST1"),
    "CD16 Mono": ("FCGR3A", "MS4A7", "VMO1", "CDKN1C", "RHOC", "LST1", "HES4", "TCF7L2", "MS4A4A"),
    "monocyte": ("LYZ", "CTSS", "AIF1", "TYROBP", "CFD", "PSAP", "SERPINA1", "CST3", "FTL", "COTL1"),
    "myeloid": ("HLA-DRA", "HLA-DRB1", "FCER1G", "GRN", "GPX1", "SPI1", "CSTA", "TYMP", "ANXA2", "LGALS1"),
    "DC": ("FCER1A", "CLEC10A", "CD1C", "CLEC9A", "ENHO", "HLA-DQA1", "CCR7", "LAMP3", "IDO2", "FSCN1"),
    "lymphoid": ("LTB", "CD69", "ETS1", "IL32", "BCL11B", "STK17A", "CXCR4", "EVL", "CORO1A", "ARHGDIB"),
    "T": ("CD3D", "CD3E", "CD3G", "CD2", "TRAC", "LAT", "CD6", "THEMIS", "UBASH3A", "SIT1"),
    "CD4": ("CD4", "IL7R", "CD40LG", "TNFRSF4", "MAL", "GIMAP5", "CD5", "TRAT1", "ICOS"),
    "CD4 Naive T": ("SELL", "LEF1", "TCF7", "NOSIP", "PIK3IP1", "FHIT", "MYC", "ACTN1", "CAMK4"),
    "CD4 Memory T": ("S100A4", "AQP3", "TNFRSF25", "ITGB1", "CRIP1", "ANXA1", "GATA3", "KLRB1", "CCR6"),
    "cytotoxic": ("NKG7", "CCL5", "GZMA", "GZMM", "PRF1", "CST7", "CTSW", "GZMH", "KLRG1"),
    "CD8 T": ("CD8A", "CD8B", "GZMK", "CRTAM", "LAG3", "EOMES", "CD27", "TIGIT"),
    "NK": ("GNLY", "KLRF1", "KLRD1", "SPON2", "FGFBP2", "CLIC3", "XCL1", "NCAM1", "GZMB", "KLRC1"),
    "B": ("MS4A1", "CD79A", "CD79B", "CD19", "TCL1A", "BANK1", "CD22", "VPREB3", "BLK", "LINC00926"),
}
_FAMILIES = (
    ("ZNF{}", 10, 900),
    ("TMEM{}", 9, 270),
    ("CCDC{}", 3, 190),
    ("SLC25A{}", 1, 53),
    ("SLC35F{}", 1, 6),
    ("FAM{}A", 8, 229),
    ("KIAA{:04d}", 100, 2030),
    ("LINC{:05d}", 100, 2000),
    ("C{}orf", 1, 22),
    ("PSMD{}", 1, 14),
    ("NDUFA{}", 1, 13),
    ("COX7A{}", 1, 3),
    ("RAB{}A", 1, 44),
    ("UBE2{}", 1, 40),
    ("MRPL{}", 1, 58),
    ("KLHL{}", 1, 42),
    ("ANKRD{}", 1, 66),
    ("WDR{}", 1, 92),
    ("TTC{}", 1, 39),
    ("ARHGAP{}", 1, 45),
    ("RP11-{}", 1, 1200),
    ("AC{:06d}.", 2000, 145000),
)


def family_symbols(rng: np.random.Generator, count: int, taken: set[str]) -> list[str]:
    """Make up ``count`` distinct symbols in the style of gene families, none of them in ``taken``."""
    found: list[str] = []
    seen = set(taken)
    while len(found) < count:
        pattern, low, high = _FAMILIES[rng.integers(len(_FAMILIES))]
        symbol = pattern.format(rng.integers(low, high + 1))
        if symbol.startswith("C") and symbol.endswith("orf"):
            symbol += str(rng.integers(10, 230))
        elif symbol.startswith("RP11-"):
            symbol += f"{'ABCDEFGHIJKLMNOP'[rng.integers(16)]}{rng.integers(1, 25)}.{rng.integers(1, 12)}"
        elif symbol.endswith("."):
            symbol += str(rng.integers(1, 9))
        if symbol not in seen:
            seen.add(symbol)
            found.append(symbol)
    return found
