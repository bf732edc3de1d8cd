// The picture that is being checked, wherever it was dropped or chosen.

import { signal } from '@preact/signals';

export const checked = signal<File | null>(null);
