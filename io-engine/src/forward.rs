//! Enums whose every variant is a device: dispatch without vtables, written once.

/// `forward_block_device!(Enum: A, B)` gives an enum the [`BlockDevice`](crate::block::BlockDevice) of its variants.
macro_rules! forward_block_device {
    ($name:ident: $($variant:ident),+) => {
        impl $crate::block::BlockDevice for $name {
            fn geometry(&self) -> $crate::block::Geometry {
                match self { $(Self::$variant(device) => device.geometry(),)+ }
            }

            async fn read(
                &self,
                lba: $crate::block::Lba,
                buf: ::runtime::IoBuf,
            ) -> Result<::runtime::IoBuf, $crate::block::BlockError> {
                match self { $(Self::$variant(device) => device.read(lba, buf).await,)+ }
            }

            async fn write(
                &self,
                lba: $crate::block::Lba,
                data: ::runtime::IoBytes,
                options: $crate::block::WriteOptions,
            ) -> Result<(), $crate::block::BlockError> {
                match self { $(Self::$variant(device) => device.write(lba, data, options).await,)+ }
            }

            async fn write_zeroes(
                &self,
                range: $crate::block::LbaRange,
                options: $crate::block::WriteOptions,
            ) -> Result<(), $crate::block::BlockError> {
                match self { $(Self::$variant(device) => device.write_zeroes(range, options).await,)+ }
            }

            async fn unmap(&self, range: $crate::block::LbaRange) -> Result<(), $crate::block::BlockError> {
                match self { $(Self::$variant(device) => device.unmap(range).await,)+ }
            }

            async fn flush(&self) -> Result<(), $crate::block::BlockError> {
                match self { $(Self::$variant(device) => device.flush().await,)+ }
            }
        }
    };
}

/// `forward_member!(Enum: A, B)` gives an enum the [`Member`](crate::member::Member) of its variants.
macro_rules! forward_member {
    ($name:ident: $($variant:ident),+) => {
        impl $crate::member::Member for $name {
            async fn report(&self) -> Result<$crate::member::MemberReport, $crate::block::BlockError> {
                match self { $(Self::$variant(member) => member.report().await,)+ }
            }

            async fn join(
                &self,
                volume: ::uuid::Uuid,
                epoch: $crate::member::Epoch,
                caught_up: bool,
            ) -> Result<(), $crate::block::BlockError> {
                match self { $(Self::$variant(member) => member.join(volume, epoch, caught_up).await,)+ }
            }

            async fn close_regions(&self, regions: &[u64]) -> Result<(), $crate::block::BlockError> {
                match self { $(Self::$variant(member) => member.close_regions(regions).await,)+ }
            }

            async fn allocated(
                &self,
                within: ::std::ops::Range<u64>,
                runs_max: usize,
            ) -> Result<(Vec<(u64, u64)>, u64), $crate::block::BlockError> {
                match self { $(Self::$variant(member) => member.allocated(within, runs_max).await,)+ }
            }

            async fn note_absent(
                &self,
                member: ::uuid::Uuid,
                left_at: $crate::member::Epoch,
                regions: &[u64],
                more_follow: bool,
            ) -> Result<(), $crate::block::BlockError> {
                match self {
                    $(Self::$variant(keeper) => keeper.note_absent(member, left_at, regions, more_follow).await,)+
                }
            }

            async fn absent(&self) -> Result<Vec<$crate::member::Absence>, $crate::block::BlockError> {
                match self { $(Self::$variant(member) => member.absent().await,)+ }
            }

            async fn missed(
                &self,
                member: ::uuid::Uuid,
                first_region: u64,
                regions_max: usize,
            ) -> Result<Option<$crate::member::Missed>, $crate::block::BlockError> {
                match self { $(Self::$variant(keeper) => keeper.missed(member, first_region, regions_max).await,)+ }
            }

            async fn forget_absent(&self, member: ::uuid::Uuid) -> Result<(), $crate::block::BlockError> {
                match self { $(Self::$variant(keeper) => keeper.forget_absent(member).await,)+ }
            }
        }
    };
}

pub(crate) use {forward_block_device, forward_member};
