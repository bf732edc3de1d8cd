// Light or dark: as the system says, or as chosen on this device.

import { effect, signal } from '@preact/signals';
import { recall, remember } from '../state/memory';

export type Theme = 'system' | 'light' | 'dark';
export const THEMES: Theme[] = ['system', 'light', 'dark'];
export const theme = signal<Theme>(recall<Theme>('theme', 'system'));

export function setTheme(chosen: Theme): void {
  remember('theme', chosen);
  theme.value = chosen;
}

export function startTheme(): void {
  effect(() => {
    if (theme.value === 'system') delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme.value;
  });
}
