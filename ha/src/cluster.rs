//! The cluster agent: switchovers of volumes, logged before they are acted upon.
