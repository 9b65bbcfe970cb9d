/** The banks of a model's methods, which hold adapters that may share a batch. */
export interface AdapterBanks {
  /** Whether rows of the adapter with this number may share a pass with rows of others; 0, the base alone, always may. */
  holds(adapter: number): boolean;
}
