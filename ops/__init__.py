"""Operations where plain torch is slow: attention, linear layers, cross-entropy."""
