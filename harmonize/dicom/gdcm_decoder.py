"""Let GDCM decode pictures that pydicom knows no way for: JPEG of 12 bits, and its retired processes.

GDCM gets the pictures and never the file: of a file it reads every element, behind the pixels too, and takes at once
the memory that each claims.
"""

from __future__ import annotations

from collections.abc import Iterable

from harmonize.dicom.layout import PixelLayout


def decode(pictures: Iterable[bytes], layout: PixelLayout) -> bytes | None:
    """The pixels of compressed pictures, little-endian, one picture after another.

    Args:
        pictures: The stream of each frame.
        layout: What the header says of them.

    Returns:
        ``frames * picture_bytes`` bytes; None where GDCM does not know the syntax or cannot read the pictures.
    """
    import gdcm  # slow to load, and needed by rare files only

    gdcm.Trace.WarningOff()
    gdcm.Trace.ErrorOff()
    syntax = gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(layout.transfer_syntax))
    if not syntax.IsEncapsulated():
        return None
    fragments = gdcm.SequenceOfFragments.New()
    for picture in pictures:
        fragment = gdcm.Fragment()
        fragment.SetByteStringValue(picture)
        fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(3 if layout.frames > 1 else 2)
    image.SetDimensions((layout.columns, layout.rows, layout.frames))
    image.SetDataElement(element)
    grey = gdcm.PhotometricInterpretation.GetPIType("MONOCHROME2")
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(grey))
    image.SetTransferSyntax(syntax)
    # The bits are put in their place later; GDCM ends the process if their highest is another than the last.
    highest = layout.bits_stored - 1
    image.SetPixelFormat(
        gdcm.PixelFormat(
            layout.samples, layout.bits_allocated, layout.bits_stored, highest, int(layout.signed or False)
        )
    )
    expected = layout.frames * layout.picture_bytes
    buffer = image.GetBuffer() if image.GetBufferLength() == expected else None
    content = b"" if buffer is None else buffer.encode("utf-8", errors="surrogateescape")
    return content if len(content) == expected else None
