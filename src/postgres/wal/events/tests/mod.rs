//! Tests of what transactions come to, on records made here. The live tests have records of real servers.
