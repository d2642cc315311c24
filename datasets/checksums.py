"""Sizes and checksums of published files, where somebody stated them.

COCO, LVIS v1, ImageNet-ReaL and the image archives of OpenImages: tensorflow_datasets' lists of checksums. VOC:
torchvision's. OpenImages V3: dnuffer's open_images_downloader, one source. For the other files none is published: they
are checked against what their server says of them.
"""

from __future__ import annotations

from typing import Any

from plbench.api import RemoteFile

_PUBLISHED = {
    "train2014.zip": (13510573713, "sha256:ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775"),
    "val2014.zip": (6645013297, "sha256:fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0"),
    "train2017.zip": (19336861798, "sha256:69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929"),
    "val2017.zip": (815585330, "sha256:4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05"),
    "annotations_trainval2014.zip": (
        252872794,
        "sha256:031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009",
    ),
    "annotations_trainval2017.zip": (
        252907541,
        "sha256:113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
    ),
    "lvis_v1_train.json.zip": (350264821, "sha256:334a4caa374030a7817cf050364525e910f7960f9b6968cef47cffbf3893f8ba"),
    "lvis_v1_val.json.zip": (64026968, "sha256:5cae9a3c79aadb667550c2b5dcf7f4d86e059a41ec91ef690225b667e28e9ba5"),
    "annotations_human_2017_11.tar.gz": (144102834, "md5:cdcbb5e9aba900530c85cb370564f599"),
    "classes_2017_11.tar.gz": (303055, "md5:3937f6dddf777ca912c816d5f6ffe06f"),
    "train_0.tar.gz": (49310925536, "sha256:0cf97b0666d4c11e0ba8c2380816f2bf09c9f7750abebd658bd9204d0aa10397"),
    "train_1.tar.gz": (36916994080, "sha256:4c7d751e9f7d2f6774b70a903b7abc084adde2019cb030144ab2cb0c251a06bc"),
    "train_2.tar.gz": (35415986940, "sha256:a83f0b60f4390680c01c00e199b546ec0333e76513f35b3cadb5024f29ee266e"),
    "train_3.tar.gz": (34107458830, "sha256:f139398421624535bf79199dc82e32f48f062e2db43410487b2e7d768a1aea88"),
    "train_4.tar.gz": (33169188573, "sha256:ff2053e039c0cbd890a85f68ce71f3c97b48895c96b1f20c090bc8ca5221939e"),
    "train_5.tar.gz": (33458664112, "sha256:09e32c82c51c89b56782678cfbb61c0debc9d81a62cd03bdbb50cbe3a0a65fcd"),
    "train_6.tar.gz": (33831108937, "sha256:6f16913f9eed07e8bb5115fc9bb56cf64831e7c73194ff9005be93a57366d181"),
    "train_7.tar.gz": (33529833990, "sha256:669d15ba911ba40f3af28eb3dbfe2f293813bcdc9a7a08666eb4e8832b3bfaf9"),
    "train_8.tar.gz": (33276342821, "sha256:784b8305c226b89c506fc4f95e7bd41ff7c40f6e46c9a2af22d2d95a78429923"),
    "train_9.tar.gz": (32822929881, "sha256:65fcac6b7ca8d8ce464ed1a7e75cee70a801be27cf80ded719e3b7e801fc1bbb"),
    "train_a.tar.gz": (32991790568, "sha256:74e5787afbf7a4d57346420eed055f1d4763b74b411d8040dc54bfe1165cf7ee"),
    "train_b.tar.gz": (33652756676, "sha256:a3538e9233ad013f1907354b7e67b991b765569b18139e7526f5fcb23b1b5a4f"),
    "train_c.tar.gz": (33386910071, "sha256:13e439d0f09251e3c1e559aa36b7058220273083e1186de08ce882919d12b5b2"),
    "train_d.tar.gz": (33324632268, "sha256:8cc4cbb08d3d2ada32d1ff17adfc2d79b5c3145198c97ddaf058e0749f57f41b"),
    "train_e.tar.gz": (30300455002, "sha256:4916d467d0d8c741de70a1de25985543a19b3fa72547771c7b69474176ffec56"),
    "train_f.tar.gz": (29979648524, "sha256:172ef8c26dad6330151d820e342396fdd7d84956713956d5ad1bae74adb7f33a"),
    "validation.tar.gz": (12844530798, "sha256:515fefdf310e17e204cfe84bb3d05e53d8a6b5465ef3b9a3164383082b506df3"),
    "VOCtrainval_06-Nov-2007.tar": (None, "md5:c52e279531787c972589f7e41ab4ae64"),
    "VOCtest_06-Nov-2007.tar": (None, "md5:b6e924de25625d8de591ea690078ad9f"),
    "VOCtrainval_11-May-2012.tar": (None, "md5:6cd6e144f989b92b3379bac3b3de84fd"),
    "real.json": (388478, "sha256:d83e9bff374c631aae8439eb064c7019acc56e1b3bc3f56b8380c2a710b0220b"),
    "test.tar.gz": (38750827781, "sha256:346814b1820eae6543f862cf1d8f48c16ee81202eceb79ed4d484a1520e96695"),
}


def published_file(url: str, **about: Any) -> RemoteFile:
    """Return a published file with its size and checksum, where they are known by its name.

    Args:
        url: where it is.
        **about: the other attributes of `RemoteFile`; `path` is the name of the file where it is left out.
    """
    name = url.rpartition("/")[2]
    size, checksum = _PUBLISHED.get(name, (None, None))
    return RemoteFile(url=url, size=size, checksum=checksum, **{"path": name, **about})
